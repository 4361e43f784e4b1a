"""What happens to a job: decided here once, the same for every broker."""
