"""An MPI program without a compiler: each part says where it runs, and all sum up their ranks.

Run by mpirun. Every part prints its rank, the number of parts, the sum and the name of its machine.
"""

import ctypes
import socket


def main() -> None:
    """Take part once."""
    mpi = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
    world, number, add = (
        ctypes.byref(ctypes.c_char.in_dll(mpi, f"ompi_mpi_{name}")) for name in ("comm_world", "int", "op_sum")
    )
    rank, size, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    mpi.MPI_Init(None, None)
    mpi.MPI_Comm_rank(world, ctypes.byref(rank))
    mpi.MPI_Comm_size(world, ctypes.byref(size))
    mpi.MPI_Allreduce(ctypes.byref(rank), ctypes.byref(total), 1, number, add, world)
    print(rank.value, size.value, total.value, socket.gethostname(), flush=True)
    mpi.MPI_Finalize()


main()
