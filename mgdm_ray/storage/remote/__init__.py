"""The storage where no folder is shared: objects at a URL, and a cache on every machine."""
