"""One file for each command: what may be asked, what is done, what is shown."""
