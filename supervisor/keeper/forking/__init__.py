"""Workers that a zygote forks: the descriptors of a new child, and the requests that are not answered yet."""
