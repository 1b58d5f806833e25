"""Evaluation on local copies of published data: pure metrics, readers, tasks, the papers' own figures."""
