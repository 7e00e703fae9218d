"""`report.html`: a study for those who read it, a clinician and a reviewer."""
