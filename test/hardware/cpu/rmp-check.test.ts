/** The RMP's checks of an SNP guest's accesses that hang on sizes and permissions (reference svm.md, section 5), as tables; snp.test.ts has the others. */
import { afterEach, beforeEach, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { hlt, jump, load, set, store } from './assembler.ts';
import { CODE, DATA, EXITINFO1, HANDLERS, PD, PT } from './guest-bench.ts';
import { LARGE, type Size, SnpLargeBench } from './snp-large-bench.ts';

/** EXITINFO1: P, U and bit 31; the final address, encrypted; a VMPL's permissions. */
const RMP = 0x8000_0005n;
const FINAL = 1n << 32n;
const ENC = 1n << 34n;
const VMPL = 1n << 36n;
const FINE = 0n;
const NPF = 0x400;

let bench: SnpLargeBench;
beforeEach(() => {
  bench = new SnpLargeBench();
});
afterEach(() => bench.close());

/** EXITINFO1 of a nested fault; 0: the guest came to its HLT. */
const run = (): bigint => (bench.run() === NPF ? bench.long(EXITINFO1) : FINE);

// The guest's own page size does not count.
it.each<[Size, Size, Size, bigint]>([
  ['large', 'large', 'large', FINE],
  ['small', 'large', 'large', FINE],
  ['large', 'small', 'small', FINE],
  ['small', 'small', 'small', FINE],
  ['large', 'large', 'small', RMP | FINAL | ENC],
  ['small', 'large', 'small', RMP | FINAL | ENC],
  ['large', 'small', 'large', RMP | FINAL | ENC],
  ['small', 'small', 'large', RMP | FINAL | ENC],
])('a read by %s guest pages, %s nested ones and %s ones of the RMP', (guest, nested, table, info) => {
  bench.mapRegion(guest, nested, table);
  bench.load([set('rdi', LARGE + 0x1000), load('rbx', 'rdi'), hlt()]);
  bench.launch();
  expect(run()).toBe(info);
});

it('says that sizes differ before #VC, and whose the page is by its 2 MiB entry', () => {
  bench.gate(29, HANDLERS);
  bench.load([hlt()], HANDLERS);
  bench.mapRegion('large', 'small', 'large');
  bench.load([set('rdi', LARGE + 0x1000), load('rbx', 'rdi'), hlt()]);
  bench.launch();
  bench.setRegion('large', { validated: false });
  expect(run()).toBe(RMP | FINAL | ENC);
});

// The mask of VMPL0; what a read, a write and a fetch by the supervisor come to.
it.each([
  [0x1f, FINE, FINE, FINE],
  [0x01, FINE, VMPL, VMPL],
  [0x02, VMPL, VMPL, VMPL],
  [0x03, FINE, FINE, VMPL],
  [0x04, VMPL, VMPL, VMPL],
  [0x08, VMPL, VMPL, FINE],
  [0x0c, VMPL, VMPL, FINE],
  [0x0a, VMPL, VMPL, VMPL],
  [0x09, FINE, VMPL, FINE],
  [0x10, VMPL, VMPL, VMPL],
  [0x00, VMPL, VMPL, VMPL],
])('a mask of %#x', (permissions, read, write, fetch) => {
  const attempt = (gpa: number, program: Parameters<SnpLargeBench['load']>[0]): bigint => {
    bench.close();
    bench = new SnpLargeBench();
    bench.load(program);
    bench.load([hlt()], CODE + 0x1000);
    bench.launch();
    bench.change({ permissions }, gpa);
    const info = run();
    if (info !== FINE) expect(info & ~(2n | 0x10n | VMPL)).toBe(RMP | FINAL | ENC);
    return info & VMPL;
  };
  expect(attempt(DATA, [set('rdi', DATA), load('rbx', 'rdi'), hlt()])).toBe(read);
  expect(attempt(DATA, [set('rdi', DATA), store('rdi', 'rdi'), hlt()])).toBe(write);
  expect(attempt(CODE + 0x1000, [set('rax', CODE + 0x1000), jump('rax')])).toBe(fetch);
});

// The frames of 2 MiB that are the guest's.
it.each<[string, number[], bigint]>([
  ['none', [], FINE],
  ['the first', [0], RMP | 2n | FINAL],
  ['the one written to', [1], RMP | 2n | FINAL],
  ['another', [300], RMP | 2n | FINAL],
])('a shared write through a nested page of 2 MiB of which the guest owns %s', (_, owned, info) => {
  bench.mapRegion('large', 'large', 'small');
  bench.write(PD + 16, BigInt(LARGE) | 0x83n);
  bench.load([set('rdi', LARGE + 0x1000), store('rdi', 'rdi'), hlt()]);
  bench.launch();
  for (let i = 0; i < 512; i++)
    if (!owned.includes(i))
      bench.rmp.rmpupdate(((bench.region + i) * 4096) as Spa, {
        ...{ assigned: false, large: false, immutable: false, gpa: 0, asid: 0 },
      });
  expect(run()).toBe(info);
});

// The mask of VMPL0; what a fetch by the user and one by the supervisor come to.
it.each([
  [0x05, FINE, VMPL],
  [0x09, VMPL, FINE],
  [0x0d, FINE, FINE],
])('a fetch under a mask of %#x', (permissions, user, supervisor) => {
  const fetch = (ring: 'user' | 'supervisor'): bigint => {
    bench.close();
    bench = new SnpLargeBench();
    bench.load([hlt()]);
    if (ring === 'user') {
      bench.becomeUser();
      for (let page = 0; page < 256; page++)
        bench.write(PT + page * 8, BigInt(page * 4096) | 7n | (1n << 51n));
    }
    bench.launch();
    bench.change({ permissions }, CODE);
    return run() & VMPL;
  };
  expect(fetch('user')).toBe(user);
  expect(fetch('supervisor')).toBe(supervisor);
});
