/** Floating point as gcc emits it: a program without a library gives the same bytes on this machine's CPU and on ours. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { hostIsZen3, hostUnfit } from '../oracle/host-cpu.ts';
import { UserMachine } from '../oracle/user-machine.ts';

const SOURCE = fileURLToPath(new URL('./float-program.c', import.meta.url));
const COMMON =
  '-msse4.1 -fno-math-errno -ffreestanding -nostdlib -static -no-pie -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns'.split(
    ' ',
  );
const BASE = 0x400000;
const IMAGE_BYTES = 0x200000;
const PT_LOAD = 1;
const RSP = 4;

const unfit = hostUnfit() ?? (spawnSync('gcc', ['--version']).error ? 'no gcc' : undefined);
if (unfit) console.log(`compiled floating point not compared: ${unfit}`);

/** The segments of a static ELF64 executable, and where it begins. */
function load(elf: Uint8Array): { image: Uint8Array; entry: number } {
  const view = new DataView(elf.buffer, elf.byteOffset, elf.length);
  const long = (at: number) => Number(view.getBigUint64(at, true));
  const image = new Uint8Array(IMAGE_BYTES);
  for (let n = 0; n < view.getUint16(56, true); n++) {
    const header = long(32) + 56 * n;
    if (view.getUint32(header, true) !== PT_LOAD) continue;
    image.set(elf.subarray(long(header + 8), long(header + 8) + long(header + 32)), long(header + 16) - BASE);
  }
  return { image, entry: long(24) };
}

function compile(flags: readonly string[], body: (path: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), 'softcvm-float-'));
  try {
    const path = join(folder, 'program');
    execFileSync('gcc', [...flags, ...COMMON, '-o', path, SOURCE]);
    body(path);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

// RCPPS and RSQRTPS, which -Ofast takes, differ from one generation to the next.
const LEVELS = [
  '-O1',
  '-O2',
  '-O3',
  '-O3 -frounding-math',
  ...(unfit === undefined && hostIsZen3() ? ['-Ofast'] : []),
];

describe.skipIf(unfit !== undefined)('a compiled program', () => {
  it.each(LEVELS)('built with %s writes what it writes on the host', (level) => {
    compile(level.split(' '), (path) => {
      const want = execFileSync(path, { maxBuffer: 1 << 20 });
      const { image, entry } = load(readFileSync(path));
      const user = new UserMachine({ image, entry, base: BASE, current: BASE, resume: BASE });
      try {
        user.machine.setRegister(RSP, BigInt(BASE + IMAGE_BYTES - 4096));
        user.machine.setWord(0x220, 0x1f80);
        expect(Buffer.from(user.run()).toString('hex')).toBe(want.toString('hex'));
        expect(user.machine.undefinedAt).toEqual([]);
      } finally {
        user.close();
      }
    });
  });
});
