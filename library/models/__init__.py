"""Small complete models, each trained by one command on data that a package ships: `python -m einfuse.library.models.NAME`."""
