/** Values for the ioctl fuzzer: the edges of each field's type, of pages, of what the machine has, and anything between them. */
import { type Entropy, seededEntropy } from '../../../src/base/entropy.ts';

const WORDS = [
  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 31, 32, 63, 64, 255, 256, 511, 512, 1023, 1024, 4095, 4096, 4097,
  32763, 32764, 32767, 0x8000, 0xffff, 0x10000, 0x10001, 0x20000, 0xfffff, 0x20_0000, 0x7fff_ffff,
  0x8000_0000, 0xffff_fffe, 0xffff_ffff,
];
const LONGS = [
  0n,
  1n,
  2n,
  7n,
  8n,
  0xfffn,
  0x1000n,
  0x1001n,
  0x10000n,
  0x20_0000n,
  0xfee0_0000n,
  0xffff_f000n,
  0xffff_ffffn,
  1n << 32n,
  1n << 36n,
  1n << 43n,
  (1n << 47n) - 0x1000n,
  1n << 47n,
  1n << 48n,
  1n << 51n,
  1n << 52n,
  (1n << 53n) - 1n,
  1n << 53n,
  (1n << 63n) - 0x1000n,
  (1n << 63n) - 1n,
  1n << 63n,
  (1n << 64n) - 0x1000n,
  (1n << 64n) - 1n,
];
/** For arguments that are JavaScript numbers and no field of a structure. */
const NUMBERS = [
  -1,
  -0,
  0.5,
  -4096,
  4096.5,
  2 ** 31,
  2 ** 32,
  2 ** 47,
  2 ** 53,
  2 ** 64,
  1e300,
  Number.NaN,
  Infinity,
  -Infinity,
];

/** What no field of the type holds, or is no value of its JavaScript type. */
const NO_WORDS: readonly unknown[] = [-1, 0.5, 2 ** 32, Number.NaN, Infinity, '1', 1n, null];
const NO_LONGS: readonly unknown[] = [-1n, -0x1000n, 1n << 64n, (1n << 64n) + 0x1000n, 4096, '4096', null];
/** Of them, what no integer argument takes. */
const NO_NUMBERS: readonly unknown[] = [0.5, Number.NaN, Infinity, '0', 0n, null];

/** Numbers of KVM_CAP_*. */
export const CAPABILITIES = [
  7, 38, 68, 81, 99, 102, 107, 121, 129, 159, 168, 188, 192, 195, 201, 204, 205, 208, 214, 218, 223, 225, 231,
  232, 233, 234, 235, 236, 244,
];
export const MSRS = [
  0x10, 0x1b, 0x3a, 0x3b, 0x8b, 0xfe, 0x174, 0x175, 0x176, 0x179, 0x1a0, 0x1d9, 0x200, 0x277, 0x2ff, 0x6e0,
  0x800, 0x802, 0x808, 0x80f, 0x830, 0x838, 0x48, 0x49, 0xc000_0080, 0xc000_0081, 0xc000_0082, 0xc000_0084,
  0xc000_0100, 0xc000_0101, 0xc000_0102, 0xc000_0103, 0xc001_0015, 0xc001_0114, 0xc001_0117, 0xc001_0130,
  0xc001_0131, 0x4b56_4d00, 0x4b56_4d01, 0x4000_0000,
];

export class FuzzValues {
  readonly #entropy: Entropy;

  constructor(seed: number) {
    this.#entropy = seededEntropy(seed);
  }

  below(limit: number): number {
    return this.#entropy.below(limit);
  }
  /** Once in `n` times. */
  oneIn(n: number): boolean {
    return this.below(n) === 0;
  }
  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }
  bit(): number {
    return this.below(2);
  }
  u8(): number {
    return this.oneIn(3) ? this.pick([0, 1, 2, 3, 0x7f, 0x80, 0xff]) : this.below(256);
  }
  u16(): number {
    return this.oneIn(2) ? this.pick(WORDS) & 0xffff : this.below(0x10000);
  }
  u32(): number {
    return this.oneIn(2) ? this.pick(WORDS) : this.below(2 ** 32);
  }
  u64(): bigint {
    if (this.oneIn(2)) return this.pick(LONGS);
    return BigInt.asUintN(
      64,
      ((BigInt(this.below(2 ** 32)) << 32n) | BigInt(this.below(2 ** 32))) >> BigInt(this.below(64)),
    );
  }
  /** off_t */
  s64(): bigint {
    return BigInt.asIntN(64, this.u64());
  }
  /** Whole pages, mostly few. */
  pages(most: number): bigint {
    return BigInt(this.below(most + 1)) * 4096n;
  }
  /** `field`, u32 or u64, as a caller without types might have it. */
  rough<T extends number | bigint>(field: T): T {
    if (!this.oneIn(40)) return field;
    return this.pick(typeof field === 'bigint' ? NO_LONGS : NO_WORDS) as T;
  }
  /** The same of an ioctl's own argument. */
  roughArgument(argument: number): number {
    return this.oneIn(40) ? (this.pick(NO_NUMBERS) as number) : argument;
  }
  /** What is asked mostly well: `good`, or anything of the type. */
  mostly<T>(good: T, any: T): T {
    return this.oneIn(6) ? any : good;
  }
  /** A JavaScript number that a caller might come up with. */
  number(good: number): number {
    return this.mostly(good, this.oneIn(2) ? this.pick(NUMBERS) : this.u32());
  }
  bytes(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    if (!this.oneIn(4)) this.#entropy.fill(bytes);
    return bytes;
  }
  some<T>(most: number, make: (index: number) => T): T[] {
    return Array.from({ length: this.below(most + 1) }, (_, index) => make(index));
  }
}
