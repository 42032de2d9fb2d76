/**
 * kvm.conversion: a guest on a real core converts one page of 4 KiB to private and to shared in turn and writes to it each time: exit,
 * attributes, discard of the side that is no longer used, re-entry, fault. Against 100 k conversions a second.
 */
import { createKernel } from '../src/kernel/kvm/index.ts';
import { enterLongMode } from './measure/long-mode.ts';
import { privateVm } from './measure/private-vm.ts';

const ROUNDS = 8;
const CONVERSIONS = 5000;
const WANTED = 100_000;
const RAM = 0x40_0000;
const TABLES = 0x1000;
const CODE = 0x8000;
const PAGE = 0x20_0000;
const KEEP_SIZE_PUNCH = 3;
const MADV_DONTNEED = 4;
/** Bit 4 of the third argument: to private. */
const ENCRYPTED = 16n;
/** again: mov eax, 12; vmmcall; mov [rbx], eax; xor edx, 16; jmp again */
const PROGRAM = [0xb8, 12, 0, 0, 0, 0x0f, 0x01, 0xd9, 0x89, 0x03, 0x83, 0xf2, 16, 0xeb, 0xf1];

export async function bench() {
  const kernel = createKernel({ memory: 32 * 1024 * 1024 });
  const { process, vm, hva, fd } = privateVm(kernel, 1, RAM);
  const put = (at: number, bytes: Uint8Array): void => process.memory.write((hva + at) as never, bytes);
  put(TABLES, new Uint8Array(BigUint64Array.of(BigInt(TABLES + 0x1000) | 0x67n).buffer));
  put(TABLES + 0x1000, new Uint8Array(BigUint64Array.of(0xe7n).buffer));
  put(CODE, Uint8Array.from(PROGRAM));
  const vcpu = vm.createVcpu(0);
  enterLongMode(vcpu, TABLES, { rip: BigInt(CODE), rbx: BigInt(PAGE), rcx: 1n, rdx: ENCRYPTED });

  const { kvmRun } = vcpu;
  const convert = (): void => {
    if (vcpu.run() !== 0 || kvmRun.exitReason !== 3) throw new Error(`exit ${kvmRun.exitReason}, want 3`);
    const address = kvmRun.hypercallArg(0);
    const toPrivate = (kvmRun.hypercallArg(2) & ENCRYPTED) !== 0n;
    vm.setMemoryAttributes({ address, size: 4096n, attributes: toPrivate ? 8n : 0n, flags: 0n });
    if (toPrivate) process.memory.madvise((hva + Number(address)) as never, 4096, MADV_DONTNEED);
    else process.fallocate(fd, KEEP_SIZE_PUNCH, address, 4096n);
    kvmRun.hypercallRet = 0n;
  };
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round++) {
    const start = performance.now();
    for (let i = 0; i < CONVERSIONS; i++) convert();
    best = Math.min(best, performance.now() - start);
  }
  kernel.close();
  const value = (CONVERSIONS / best) * 1000;
  return {
    value,
    unit: 'conversions/s',
    bound: WANTED,
    ratio: value / WANTED,
    note: 'a page a call, to private and to shared in turn, with a write of the guest after each',
  };
}
