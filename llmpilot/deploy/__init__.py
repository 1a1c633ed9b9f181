"""Places where a service runs, one file each: context managers that yield an endpoint and always clean up."""
