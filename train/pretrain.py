"""Pretrain an encoder: `deepspeed train/pretrain.py --config train/configs/demo.yaml [section.key=value ...]`.

The same command continues a run that was stopped: the newest checkpoint in `run.dir` decides. It also runs under
torchrun and srun, and as plain `python train/pretrain.py` in one process. `--smoke` tries a config: two steps at
reduced size on generated data.

SIGTERM saves a checkpoint at the next log step; one rank that gets it is enough, all of them may. Exit code 75 says so,
1 under torchrun. The `deepspeed` process itself does not pass the signal on: it dies, and the ranks train on. Send it
to a rank, or to the process group (`kill -TERM -- -GROUP`): `deepspeed` then ends by the signal, which a shell calls
143, and the ranks soon after. Exit code 2: something that you can mend, said in one sentence. 0: all steps are done.
"""

import sys

if __name__ == "__main__":
    from train.command import start  # not above: each decoding process imports this file, and needs nothing of it

    sys.exit(start(sys.argv[1:], str(__doc__)))
