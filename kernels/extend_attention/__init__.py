"""Several new tokens a row attend over older text in pages or rings, and over each other."""
