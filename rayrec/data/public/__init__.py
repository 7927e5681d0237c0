"""Public data sets, one file each, of whichever kind."""
