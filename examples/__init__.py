"""Applications that show mpgroupcache at work; run from the repository's root."""
