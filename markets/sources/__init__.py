"""Price sources, one file a provider: its endpoints, and how what it says becomes our offers."""
