"""What a person looks at once a training has ended: one page, made of the run folder's files. Light."""
