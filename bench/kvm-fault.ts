/**
 * kvm.fault: private faults of a guest, one page after the other, on frames that were used before, against 500 k/s. In the note
 * the same on frames that nobody has touched yet, beside the host's own first touch of as many pages of a fresh memory.
 *
 * The vCPU's core is a stand-in that reports a nested page fault per entry, so this is KVM's part alone.
 */
import { VMCB, VMEXIT } from '../src/abi/vmcb.ts';
import type { Spa } from '../src/base/address.ts';
import { Trace } from '../src/base/trace.ts';
import { HostMemory } from '../src/hardware/memory/host-memory.ts';
import { MemoryPool } from '../src/hardware/memory/pool.ts';
import { HostTime } from '../src/kernel/kvm/host-time.ts';
import { Kvm } from '../src/kernel/kvm/kvm.ts';
import { kvmPolicy } from '../src/kernel/kvm/policy.ts';
import type { GuestCore } from '../src/kernel/kvm/svm/guest-core.ts';
import { Process } from '../src/kernel/process.ts';

const PAGES = 16384;
const WANTED = 500_000;
const ROUNDS = 10;
const KEEP_SIZE_PUNCH = 3;
const WRITE_FAULT = 6;

/** Writes to one page after the other, then halts. */
class FaultingCore implements GuestCore {
  readonly gpr = new BigUint64Array(16);
  readonly gprWords = new Int32Array(this.gpr.buffer);
  readonly retired = 0;
  readonly xmm = new Uint8Array(256);
  mxcsr = 0x1f80;
  xcr0 = 1n;
  readonly debugAddresses = new BigUint64Array(4);
  tscAux = 0n;
  next = 0;
  readonly #memory: HostMemory;

  constructor(memory: HostMemory) {
    this.#memory = memory;
  }
  vmrun(vmcb: Spa): number {
    const code = this.next < PAGES ? VMEXIT.NPF : VMEXIT.HLT;
    this.#memory.store32((vmcb + VMCB.EXITCODE) as Spa, code);
    this.#memory.store32((vmcb + VMCB.EXITINFO1) as Spa, WRITE_FAULT);
    this.#memory.store32((vmcb + VMCB.EXITINFO2) as Spa, this.next++ * 4096);
    return code;
  }
  emulate(): 'failed' {
    return 'failed';
  }
  fetchBytes(): number {
    return 0;
  }
  readX87(): void {}
  writeX87(): void {}
  close(): void {}
}

export async function bench() {
  const trace = new Trace();
  const memory = HostMemory.create({ bytes: 96 * 1024 * 1024, trace, pool: new MemoryPool(0) });
  const core = new FaultingCore(memory);
  const host = {
    memory,
    trace,
    policy: kvmPolicy('7.2'),
    timeslice: 0,
    gmemHuge: false,
    sev: undefined,
    time: new HostTime(),
    createCore: () => core,
  };
  const process = new Process({ memory, openDevice: (opener) => new Kvm(host, opener) });
  const vm = process.openKvm().createVm(1);
  const size = BigInt(PAGES * 4096);
  const fd = vm.createGuestMemfd({ size, flags: 0n });
  const slot = { slot: 0, flags: 4, guestPhysAddr: 0n, memorySize: size, userspaceAddr: 0n };
  vm.setUserMemoryRegion2({ ...slot, guestMemfd: fd, guestMemfdOffset: 0n });
  vm.setMemoryAttributes({ address: 0n, size, attributes: 8n, flags: 0n });
  const vcpu = vm.createVcpu(0);

  const faultAll = (): number => {
    core.next = 0;
    const start = performance.now();
    if (vcpu.run() !== 0) throw new Error(`a private fault failed with exit ${vcpu.kvmRun.exitReason}`);
    return performance.now() - start;
  };
  const cold = faultAll();
  let recycled = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round++) {
    process.fallocate(fd, KEEP_SIZE_PUNCH, 0n, size);
    recycled = Math.min(recycled, faultAll());
  }
  process.exit();
  memory.close();
  const value = (PAGES / recycled) * 1000;
  return {
    value,
    unit: 'faults/s',
    bound: WANTED,
    ratio: value / WANTED,
    note: `recycled frames; cold ones ${((PAGES / cold) * 1000).toFixed(0)} faults/s, ${(firstTouch() / cold).toFixed(2)} of a raw first touch`,
  };
}

/** Milliseconds of one store to each of as many pages that nobody has touched. */
function firstTouch(): number {
  const bytes = new Uint8Array(new WebAssembly.Memory({ initial: 1024, maximum: 1024, shared: true }).buffer);
  const start = performance.now();
  for (let at = 0; at < bytes.length; at += 4096) bytes[at] = 1;
  return ((performance.now() - start) / (bytes.length / 4096)) * PAGES;
}
