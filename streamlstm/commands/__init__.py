"""The commands of `streamlstm`, a file each: add(commands) makes its parser, run(args) does it."""
