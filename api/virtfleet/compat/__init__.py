"""The fixed contracts of older systems, one file each. Nothing but the app imports them."""
