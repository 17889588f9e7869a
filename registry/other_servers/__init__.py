"""Exports versions to other servers: Triton's model repository, and KServe's InferenceService."""
