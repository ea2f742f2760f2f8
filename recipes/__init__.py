"""Reference assemblies of the five packages."""
