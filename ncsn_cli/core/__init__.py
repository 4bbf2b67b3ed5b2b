"""The ground floor: what every wing shares."""
