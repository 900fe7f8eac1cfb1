"""Many records become one dataset; the impossible is refused."""
