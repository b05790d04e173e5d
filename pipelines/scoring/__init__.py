"""Pictures from anywhere, judged: any folder against any reference, by any embedder on this machine."""
