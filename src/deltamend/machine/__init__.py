"""Services of the operating system: files and folders written atomically, the cache folder, hashes and worker threads."""
