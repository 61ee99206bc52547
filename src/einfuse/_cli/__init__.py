"""The commands of `einfuse`, each a function from parsed arguments to an exit code."""
