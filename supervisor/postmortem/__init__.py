"""Why a worker died: cause, crash report, archive, explanation."""
