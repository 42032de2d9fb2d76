/**
 * cpu.loops: five loops on our core, against the same ELF file under qemu-system-x86_64's TCG on this machine. The guest prints a dot
 * a round; a loop's speed is rounds a second, the first 200 ms apart. The value is the geometric mean of MIPS, the ratio that of
 * ours to QEMU's speed.
 */
import { spawn, spawnSync } from 'node:child_process';
import { createHost, GiB, MiB, readImage } from '../src/index.ts';

const GUEST = 'loops-long';
const WARM_UP_MS = 200;
const WANTED = 0.2;
const TIMEOUT_MS = 300_000;

/** What came of a guest's console, when, and how many instructions had been retired by then. */
interface Piece {
  readonly text: string;
  readonly at: number;
  readonly instructions: number;
}

interface Loop {
  readonly name: string;
  /** Rounds a second, after warm-up and before. */
  readonly warm: number;
  readonly cold: number;
  /** Instructions a round; NaN where the peer cannot tell. */
  readonly instructions: number;
  readonly checksum: string;
}

/** Dots of each line, with the time at which each was seen. */
function loopsOf(pieces: readonly Piece[]): Loop[] {
  const loops: Loop[] = [];
  let start: Piece = { text: '', at: pieces[0]?.at ?? 0, instructions: 0 };
  let seen: { rounds: number; at: number }[] = [];
  let line = '';
  for (const piece of pieces) {
    for (const part of piece.text.split(/(?<=\n)/)) {
      line += part;
      const rounds = line.split('.').length - 1;
      seen.push({ rounds, at: piece.at });
      if (!part.endsWith('\n')) continue;
      const begin = start.at;
      const last = seen.at(-1)!;
      const edge = seen.find(
        ({ at, rounds: done }) => at - begin >= WARM_UP_MS && done > 0 && done < rounds,
      ) ?? {
        rounds: 0,
        at: begin,
      };
      const [name = '', , checksum = ''] = line.trim().split(' ');
      loops.push({
        name,
        warm: ((rounds - edge.rounds) / (last.at - edge.at)) * 1000,
        cold: edge.rounds === 0 ? Number.NaN : (edge.rounds / (edge.at - begin)) * 1000,
        instructions: (piece.instructions - start.instructions) / rounds,
        checksum,
      });
      start = piece;
      seen = [];
      line = '';
    }
  }
  return loops;
}

async function ours(): Promise<Loop[]> {
  using host = createHost({ memory: GiB });
  const pieces: Piece[] = [];
  using vm = host.createVm({
    memory: 64 * MiB,
    ...(await readImage(GUEST)),
    onConsole(bytes) {
      pieces.push({
        text: Buffer.from(bytes).toString(),
        at: performance.now(),
        instructions: vm.instructions,
      });
    },
  });
  const started = performance.now();
  const { exit } = await vm.run({ timeoutMs: TIMEOUT_MS });
  if (exit.reason !== 'debug-exit' || exit.code !== 0) throw new Error(`${GUEST}: ${JSON.stringify(exit)}`);
  return loopsOf([{ text: '', at: started, instructions: 0 }, ...pieces]);
}

async function qemu(image: string): Promise<Loop[] | undefined> {
  if (spawnSync('qemu-system-x86_64', ['--version']).error !== undefined) return undefined;
  const child = spawn(
    'qemu-system-x86_64',
    [
      ...[
        '-M',
        'pc',
        '-accel',
        'tcg',
        '-cpu',
        'max',
        '-m',
        '64',
        '-display',
        'none',
        '-serial',
        'stdio',
        '-no-reboot',
      ],
      ...['-device', 'isa-debug-exit,iobase=0xf4,iosize=1', '-kernel', image],
    ],
    { stdio: ['ignore', 'pipe', 'ignore'] },
  );
  const pieces: Piece[] = [];
  child.stdout.on('data', (bytes: Buffer) => {
    pieces.push({ text: bytes.toString(), at: performance.now(), instructions: Number.NaN });
  });
  const status = await new Promise((resolve) => child.on('close', resolve));
  // isa-debug-exit: (code << 1) | 1
  if (status !== 1) return undefined;
  const first = pieces[0]!;
  return loopsOf([{ ...first, text: '' }, ...pieces]);
}

const geometricMean = (values: readonly number[]): number =>
  Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);

export async function bench() {
  const own = await ours();
  const mips = own.map(({ warm, instructions }) => (warm * instructions) / 1e6);
  const value = geometricMean(mips);
  const list = (values: readonly number[]): string =>
    own.map(({ name }, i) => `${name} ${values[i]!.toFixed(values[i]! < 10 ? 2 : 0)}`).join(', ');
  const cold = own.map(({ cold: rate, instructions }) => (rate * instructions) / 1e6);
  const note = `MIPS: ${list(mips)}; in the first ${WARM_UP_MS} ms: ${list(cold)}`;
  const image = new URL(`../../guests/prebuilt/${GUEST}.elf`, import.meta.url).pathname;
  const peer = await qemu(image);
  if (peer === undefined) {
    return {
      value,
      unit: 'MIPS',
      bound: Number.NaN,
      ratio: Number.NaN,
      note: `${note}; qemu-system-x86_64 is not installed, no bound`,
    };
  }
  if (peer.some(({ checksum }, i) => checksum !== own[i]!.checksum))
    throw new Error('checksums differ from those under QEMU');
  const ratios = own.map(({ warm }, i) => warm / peer[i]!.warm);
  const peerMips = peer.map(({ warm }, i) => (warm * own[i]!.instructions) / 1e6);
  return {
    value,
    unit: 'MIPS',
    bound: geometricMean(peerMips),
    ratio: geometricMean(ratios),
    note: `${note}; QEMU TCG: ${list(peerMips)}; ratios: ${list(ratios)}, wanted ${WANTED}`,
  };
}
