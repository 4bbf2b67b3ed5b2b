"""The ground floor: modules that every other subpackage shares."""
