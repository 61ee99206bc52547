"""The passes: one file each, every one a pure function of a cascade."""
