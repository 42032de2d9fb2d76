/** Floating-point numbers that like edges, and states of MXCSR: what snippets of floating-point instructions begin with. */
import type { Random } from './random.ts';
import type { CpuState } from './snippet.ts';

interface Layout {
  readonly bits: 32 | 64;
  readonly fraction: number;
}
const LAYOUTS: readonly Layout[] = [
  { bits: 32, fraction: 23 },
  { bits: 64, fraction: 52 },
];

const INTEGERS = [
  0.5,
  1.5,
  2.5,
  2147483647,
  2147483648,
  2147483649,
  4294967296,
  2147483647.5,
  2 ** 53,
  2 ** 62,
  2 ** 63,
  2 ** 64,
];

/** One number of the layout, as bits. */
function float(random: Random, { bits, fraction }: Layout): bigint {
  const sign = BigInt(random.below(2)) << BigInt(bits - 1);
  const exponents = bits === 32 ? 255 : 2047;
  const bias = exponents >> 1;
  const randomFraction = random.u64() & ((1n << BigInt(fraction)) - 1n);
  const short = random.oneIn(2)
    ? randomFraction & ~((1n << BigInt(random.below(fraction))) - 1n)
    : randomFraction;
  const made = (exponent: number, part: bigint) => sign | (BigInt(exponent) << BigInt(fraction)) | part;
  switch (random.below(10)) {
    case 0:
      return made(random.pick([0, 0, bias, exponents]), 0n);
    case 1:
      return made(
        random.pick([0, 1, exponents - 1, bias]),
        random.pick([0n, 1n, (1n << BigInt(fraction)) - 1n]),
      );
    case 2:
      return made(0, short);
    case 3:
      return made(exponents, short === 0n ? 1n : short);
    case 4:
      return made(1 + random.below(60), short);
    case 5:
      return made(exponents - 1 - random.below(60), short);
    case 6:
      return sign | encode(random.oneIn(2) ? random.pick(INTEGERS) : random.below(200), bits);
    case 7:
      return random.u64() & ((1n << BigInt(bits)) - 1n);
    default:
      return made(bias - 4 + random.below(9), short);
  }
}

function encode(value: number, bits: 32 | 64): bigint {
  const view = new DataView(new ArrayBuffer(8));
  if (bits === 32) view.setFloat32(0, value, true);
  else view.setFloat64(0, value, true);
  return view.getBigUint64(0, true);
}

function fill(bytes: Uint8Array, random: Random): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at < bytes.length; at += 16) {
    const layout = random.pick(LAYOUTS);
    for (let lane = at; lane < at + 16; lane += layout.bits / 8) {
      const value = float(random, layout);
      if (layout.bits === 32) view.setUint32(lane, Number(value), true);
      else view.setBigUint64(lane, value, true);
    }
  }
}

/** All masked to nearest; all masked; or anything. Sticky flags are clear, or PE alone, or anything. */
function mxcsr(random: Random): number {
  const sticky = random.pick([0, 0, 0x20, random.below(64)]);
  const control = random.pick([
    0x1f80,
    0x1f80 | (random.below(4) << 13),
    0x1f80 | random.below(0x10000),
    random.below(0x10000),
  ]);
  return (control & 0xffc0) | sticky;
}

/** The state with numbers in its vectors and window. */
export function withFloats(before: CpuState, random: Random): CpuState {
  fill(before.vectors, random);
  fill(before.window, random);
  return { ...before, mxcsr: mxcsr(random) };
}
