"""Runs a command on a terminal of its own, and types answers at its prompts.

usage: typed.py PROMPTS-AND-ANSWERS-JSON COMMAND...

Prints what the terminal showed; ends with the command's exit code.
"""

import json
import os
import pty
import sys
import termios
import time

HIDDEN = "component of"  # prompts that begin like this are answered unseen

answers, command = json.loads(sys.argv[1]), sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
shown, at = b"", 0
while True:
    try:
        piece = os.read(terminal, 4096)
    except OSError:  # the command has closed it
        break
    if not piece:
        break
    shown += piece
    # A prompt is answered once, after it is there.
    while answers and answers[0][0].encode() in shown[at:]:
        prompt, answer = answers.pop(0)
        at = shown.index(prompt.encode(), at) + len(prompt)
        # As a person is: slower than the command takes the echo away.
        while prompt.startswith(HIDDEN) and termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(terminal, answer.encode() + b"\n")
sys.stdout.buffer.write(shown)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
