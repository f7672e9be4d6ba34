"""What stages leave as JSON, as dataclasses: one file per artifact, read and written by everybody above.

A record that is read back has exactly the fields of its class. Another schema, or fields that are missing or unknown,
are refused with the stage to rebuild.
"""
