"""Programs that know nothing of the mesh as algorithms, unchanged: by lines of JSON, once per call, or over HTTP."""
