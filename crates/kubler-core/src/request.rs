//! What a request to a Kubernetes API asks for, read from its path, query and headers. Pure.
