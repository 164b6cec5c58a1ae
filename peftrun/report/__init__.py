"""What a person looks at once a training has ended: one page, made of the run folder's files. Light."""

PAGE, CURVES = "report.html", "curves.svg"
PREVIEW = "preview.html"  # the page of action=preview
ROWS = "rows.jsonl"  # rows as they are learned: those of a preview, the first ones of a training
