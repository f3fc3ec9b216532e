"""What one trial does: data, teacher, student, projectors, losses and the loop. Runs without Ray."""
