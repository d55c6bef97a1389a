"""Watches every host, read-only, and records what it sees: `python -m virtfleet.observer`.

Libvirt is the truth; the observer writes it down and decides nothing. Nothing is ever deleted here.

- Each host has a child process with one libvirt connection, for a hung libvirt can only be ended with its process.
  The parent (`watching`) is one loop that never calls libvirt, so that one bad host cannot hold up the others.
- A host that does not answer is `down`, with a sentence that says why. Its machines keep the state in which they were
  last seen, and `observed_at` says when that was: a host that cannot be reached says nothing about its machines.
- A machine that its host, which answers, no longer has is `missing`; one that is seen on another host is followed.
- A machine held by an unfinished job is left to that job, and so are machines that are being made or deleted.
"""
