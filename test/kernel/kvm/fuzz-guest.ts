/** Bytes that a fuzzed guest may find to execute, to walk as page tables, or to take a fault at. */
import { GuestProgram } from './guest-program.ts';

const program = (build: (program: GuestProgram) => GuestProgram): Uint8Array =>
  build(new GuestProgram()).hlt().assemble(0x1000);

/** Page tables at every page: each entry maps its own index, with all rights. */
const selfMap = (): Uint8Array => {
  const bytes = new Uint8Array(64 * 4096);
  const view = new DataView(bytes.buffer);
  for (let page = 0; page < 64; page++) {
    for (let entry = 0; entry < 64; entry++)
      view.setBigUint64(page * 4096 + 2048 + entry * 8, BigInt(entry * 4096) | 0x67n, true);
    view.setBigUint64(page * 4096, BigInt(((page + 1) % 64) * 4096) | 0x67n, true);
  }
  return bytes;
};

/** 1 GiB from 0 on in one page, whichever page is the root. */
const largeMap = (): Uint8Array => {
  const bytes = new Uint8Array(4096 * 2);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, 0x1067n, true);
  view.setBigUint64(4096, 0xe7n, true);
  return bytes;
};

export const LARGE_MAP = largeMap();

export const GUEST_SNIPPETS: readonly Uint8Array[] = [
  program((p) => p.set('rdx', 0x3f8n).set('rax', 0x41n).out().out()),
  program((p) => p.set('rdx', 0x60n).in().in()),
  program((p) => p.set('rdx', 0x3f8n).set('rcx', 9n).set('rsi', 0x1ffcn).outString()),
  program((p) => p.set('rdx', 0x60n).set('rcx', 9n).set('rdi', 0x2ff8n).inString()),
  program((p) => p.set('rdi', 0x3000n).store('rdi', 'rax').addTo('rdi', 'rax').load('rcx', 'rdi')),
  program((p) => p.set('rdi', 0x9ffcn).store('rdi', 'rax').set('rdi', 0x2_0000n).addTo('rdi', 'rax')),
  program((p) => p.set('rdi', 0xfee0_0020n).load('rcx', 'rdi').set('rdi', 0xfee0_0300n).store('rdi', 'rcx')),
  program((p) => p.set('rdi', 0x3000_0000n).load('rcx', 'rdi').store('rdi', 'rcx')),
  program((p) => p.set('rsi', 0x3000_0000n).set('rdi', 0x5000n).movsq().movsq()),
  program((p) => p.set('rax', 12n).set('rbx', 0x4000n).set('rcx', 1n).set('rdx', 16n).vmcall().vmmcall()),
  program((p) => p.set('rax', 0n).cpuid().set('rax', 7n).cpuid()),
  program((p) => p.set('rcx', 0x10n).rdmsr().set('rcx', 0xc000_0080n).rdmsr().wrmsr()),
  program((p) => p.set('rcx', 0x4b56_4d00n).wrmsr().set('rcx', 0x1bn).rdmsr().wrmsr()),
  program((p) => p.set('rcx', 0xc001_0130n).set('rax', 2n).set('rdx', 0n).wrmsr().vmmcall()),
  program((p) => p.sti().nop().nop().int3()),
  program((p) => p.sti().forever()),
  program((p) => p.ud2().iret()),
  selfMap(),
  LARGE_MAP,
];
