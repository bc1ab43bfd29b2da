"""What makes other libraries use fastdl; each module imports its library when it is imported."""
