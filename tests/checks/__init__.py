"""The checks of this repository: what `./fleet test` runs."""
