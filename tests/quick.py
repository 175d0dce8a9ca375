"""Settings of runs that compile quickly, for tests of what a run does with any."""

# Colour jitter, blur and the like take most of what a teacher's step takes to compile; tests/teacher and tests/core try them.
NO_JITTER = dict.fromkeys(("jitter", "blur", "gray", "solarize"), 0.0)
VIEWS = {"first_view": NO_JITTER, "second_view": NO_JITTER}
QUICK_TEACHER = [f"--config.teacher.{view}.{name}={value}" for view, values in VIEWS.items() for name, value in values.items()]
