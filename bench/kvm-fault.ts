/**
 * kvm.fault: a guest on a real core stores to one private page after the other, and each store is a fault: nested walk, #VMEXIT, KVM with guest_memfd and page tables,
 * re-entry. On frames that were used before, against 500 k/s; in the note on frames that nobody has touched yet, beside the host's own first touch of as many pages of a
 * fresh memory.
 */
import { createKernel, type Kernel } from '../src/kernel/kvm/index.ts';
import { enterLongMode } from './measure/long-mode.ts';
import { privateVm } from './measure/private-vm.ts';

const PAGES = 16384;
const WANTED = 500_000;
const ROUNDS = 30;
const COLD_ROUNDS = 5;
const KEEP_SIZE_PUNCH = 3;
const KVM_EXIT_HLT = 5;
const TABLES = 0x1000;
const CODE = 0x8000;
const FIRST = 0x20_0000;
const END = FIRST + PAGES * 4096;
/** again: mov [rbx], eax; add rbx, 4096; cmp rbx, rcx; jb again; hlt */
const PROGRAM = [0x89, 0x03, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0x48, 0x39, 0xcb, 0x72, 0xf2, 0xf4];

export async function bench() {
  let cold = Number.POSITIVE_INFINITY;
  let recycled = Number.POSITIVE_INFINITY;
  let touch = Number.POSITIVE_INFINITY;
  const kernel = createKernel({ memory: 2 ** 30 });
  // All stay open, so that each has frames that nobody had.
  const guests = Array.from({ length: COLD_ROUNDS }, () => faultingGuest(kernel));
  for (const guest of guests) {
    touch = Math.min(touch, firstTouch());
    cold = Math.min(cold, guest.faultAll());
  }
  const [guest] = guests;
  for (let round = 0; round < ROUNDS; round++) {
    guest!.punch();
    recycled = Math.min(recycled, guest!.faultAll());
  }
  kernel.close();
  const value = (PAGES / recycled) * 1000;
  return {
    value,
    unit: 'faults/s',
    bound: WANTED,
    ratio: value / WANTED,
    note: `recycled frames; cold ones ${((PAGES / cold) * 1000).toFixed(0)} faults/s, ${(touch / cold).toFixed(2)} of a raw first touch`,
  };
}

function faultingGuest(kernel: Kernel) {
  const { process, vm, hva, fd } = privateVm(kernel, 1, END);
  const put = (at: number, bytes: Uint8Array): void => process.memory.write((hva + at) as never, bytes);
  put(TABLES, new Uint8Array(BigUint64Array.of(BigInt(TABLES + 0x1000) | 0x67n).buffer));
  put(TABLES + 0x1000, new Uint8Array(BigUint64Array.of(0xe7n).buffer));
  put(CODE, Uint8Array.from(PROGRAM));
  const size = BigInt(PAGES * 4096);
  vm.setMemoryAttributes({ address: BigInt(FIRST), size, attributes: 8n, flags: 0n });
  const vcpu = vm.createVcpu(0);
  return {
    /** Milliseconds of a fault on each page. */
    faultAll(): number {
      enterLongMode(vcpu, TABLES, { rip: BigInt(CODE), rbx: BigInt(FIRST), rcx: BigInt(END) });
      const start = performance.now();
      if (vcpu.run() !== 0 || vcpu.kvmRun.exitReason !== KVM_EXIT_HLT)
        throw new Error(`a private fault failed with exit ${vcpu.kvmRun.exitReason}`);
      return performance.now() - start;
    },
    punch: () => process.fallocate(fd, KEEP_SIZE_PUNCH, BigInt(FIRST), size),
  };
}

/** Milliseconds of one store to each of as many pages that nobody has touched. */
function firstTouch(): number {
  const bytes = new Uint8Array(new WebAssembly.Memory({ initial: 1024, maximum: 1024, shared: true }).buffer);
  const start = performance.now();
  for (let at = 0; at < bytes.length; at += 4096) bytes[at] = 1;
  return ((performance.now() - start) / (bytes.length / 4096)) * PAGES;
}
