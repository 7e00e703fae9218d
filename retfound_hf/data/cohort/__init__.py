"""Labels for prognosis: from the dates of images and events to a labelled cohort and the count of who was excluded."""
