"""The tables that flow between stages: columns, types, units and meaning, named once, by the stage that writes them."""
