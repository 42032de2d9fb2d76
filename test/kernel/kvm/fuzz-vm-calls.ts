/** The ioctl fuzzer's calls on VMs. */
import type { Hva } from '../../../src/base/address.ts';
import type { KvmVm } from '../../../src/kernel/interface.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import { GUEST_SNIPPETS, LARGE_MAP } from './fuzz-guest.ts';
import { boot } from './fuzz-run.ts';
import { prepareSnp, sevCommand } from './fuzz-sev-commands.ts';
import { type Action, type FuzzSubject, MAX_FILES, type Machine, PAGE } from './fuzz-subject.ts';
import { CAPABILITIES, MSRS } from './fuzz-values.ts';

const MAX_VCPUS = 4;

export function vmCalls(subject: FuzzSubject): Action[] {
  const v = subject.values;
  const call = <T>(
    name: string,
    make: (vm: KvmVm) => T,
    act: (vm: KvmVm, argument: T) => unknown,
  ): (() => void) =>
    subject.withVm((vm) => {
      const argument = make(vm);
      subject.log.call(`vm ${name}`, argument, () => act(vm, argument));
    });
  const slot = (): number => v.rough(v.mostly(v.below(4) | (v.oneIn(9) ? 0x10000 : 0), v.u32()));
  return [
    [
      1,
      call(
        'checkExtension',
        () => v.pick([...CAPABILITIES, v.u32()]),
        (vm, cap) => vm.checkExtension(cap),
      ),
    ],
    [
      5,
      call(
        'enableCap',
        () => ({
          cap: v.rough(v.mostly(v.pick(CAPABILITIES), v.u32())),
          flags: v.rough(v.oneIn(9) ? v.u32() : 0),
          args: v.oneIn(9) ? [] : [v.rough(v.mostly(v.pick([1n, 2n, 3n, 4096n, 65536n, 24n]), v.u64()))],
        }),
        (vm, request) => vm.enableCap(request),
      ),
    ],
    [
      16,
      subject.withVm((vm) => {
        const guestMemfd = v.mostly(subject.fd(), v.u32());
        const region = {
          slot: slot(),
          flags: v.rough(v.mostly(v.pick([0, 1, 4, 4, 4]), v.u32())),
          guestPhysAddr: v.rough(v.mostly(v.pick([0n, 0n, v.pages(64)]), v.u64())),
          memorySize: v.rough(v.mostly(v.pick([0n, 0x1_0000n, 0x4_0000n, v.pages(64)]), v.u64())),
          userspaceAddr: v.rough(v.mostly(BigInt(subject.address()), v.u64())),
          guestMemfdOffset: v.rough(v.mostly(v.pick([0n, v.pages(16)]), v.u64())),
          guestMemfd,
        };
        if (!subject.spares(Number(region.userspaceAddr), Number(region.memorySize))) return;
        if (v.oneIn(4))
          subject.log.call('vm setUserMemoryRegion', region, () => vm.setUserMemoryRegion(region));
        else subject.log.call('vm setUserMemoryRegion2', region, () => vm.setUserMemoryRegion2(region));
      }),
    ],
    [
      6,
      call(
        'createGuestMemfd',
        () => ({
          size: v.rough(v.mostly(v.pages(128), v.u64())),
          flags: v.rough(v.mostly(v.pick([0n, 1n, 3n]), v.u64())),
        }),
        (vm, request) => subject.process.files.open().length < MAX_FILES * 3 && vm.createGuestMemfd(request),
      ),
    ],
    [
      14,
      call(
        'setMemoryAttributes',
        () => ({
          address: v.rough(subject.gpa()),
          size: v.rough(v.mostly(v.pages(64), v.u64())),
          attributes: v.rough(v.mostly(v.pick([0n, 8n, 8n]), v.u64())),
          flags: v.rough(v.oneIn(20) ? v.u64() : 0n),
        }),
        (vm, request) => vm.setMemoryAttributes(request),
      ),
    ],
    [
      6,
      subject.withVm((vm, machine) => {
        if (machine.vcpus.length >= MAX_VCPUS) return;
        const id = v.roughArgument(v.mostly(v.below(MAX_VCPUS), v.u32()));
        const vcpu = subject.log.call('createVcpu', id, () => vm.createVcpu(id));
        if (vcpu !== undefined) machine.vcpus.push(vcpu);
      }),
    ],
    [
      4,
      call(
        'getDirtyLog',
        () => ({ slot: slot(), bitmap: new Int32Array(v.pick([0, 1, 2, 4, 64])) }),
        (vm, request) => vm.getDirtyLog(request),
      ),
    ],
    [
      4,
      call(
        'clearDirtyLog',
        () => ({
          slot: slot(),
          bitmap: new Int32Array(v.pick([0, 1, 2, 4, 64])).fill(-v.bit()),
          firstPage: v.rough(v.mostly(v.pick([0n, 64n, 128n]), v.u64())),
          numPages: v.rough(v.mostly(v.pick([64, 16, 128, 0]), v.u32())),
        }),
        (vm, request) => vm.clearDirtyLog(request),
      ),
    ],
    [
      2,
      call(
        'resetDirtyRings',
        () => '',
        (vm) => vm.resetDirtyRings(),
      ),
    ],
    [
      2,
      call(
        'setMsrFilter',
        () => ({
          flags: v.mostly(v.bit(), v.u32()),
          ranges: v.some(v.oneIn(9) ? 20 : 3, () => ({
            flags: v.rough(v.mostly(1 + v.below(3), v.u32())),
            base: v.rough(v.mostly(v.pick(MSRS), v.u32())),
            nmsrs: v.rough(v.mostly(v.below(128), v.u32())),
            bitmap: v.bytes(v.pick([0, 1, 16, 16, 0x600])),
          })),
        }),
        (vm, filter) => vm.setMsrFilter(filter),
      ),
    ],
    [
      1,
      call(
        'createIrqchip',
        () => '',
        (vm) => vm.createIrqchip(),
      ),
    ],
    [
      1,
      call(
        'setBootCpuId',
        () => v.roughArgument(v.mostly(v.below(4), v.u32())),
        (vm, id) => vm.setBootCpuId(id),
      ),
    ],
    [
      3,
      call(
        'irqLine',
        () => ({
          irq: v.rough(v.mostly(v.below(32), v.u32())),
          level: v.rough(v.below(3)),
        }),
        (vm, request) => vm.irqLine(request),
      ),
    ],
    [
      4,
      call(
        'signalMsi',
        () => ({
          addressLo: v.rough(v.mostly((0xfee0_0000 | (v.u32() & 0xf_ffff)) >>> 0, v.u32())),
          addressHi: v.rough(v.oneIn(4) ? v.u32() : 0),
          data: v.rough(v.mostly(v.u16() & 0x47ff, v.u32())),
          flags: v.oneIn(9) ? v.u32() : 0,
          devid: v.u32(),
        }),
        (vm, message) => vm.signalMsi(message),
      ),
    ],
    [
      2,
      call(
        'setGsiRouting',
        () => ({
          routes: v.some(6, () => ({
            gsi: v.rough(v.mostly(v.below(32), v.u32())),
            type: v.rough(v.mostly(2, v.u32())),
            flags: v.oneIn(9) ? v.u32() : 0,
            msi: { addressLo: (0xfee0_0000 | (v.u32() & 0xf_ffff)) >>> 0, addressHi: 0, data: v.u16() },
          })),
          flags: v.oneIn(9) ? v.u32() : 0,
        }),
        (vm, request) => vm.setGsiRouting(request),
      ),
    ],
    [
      14,
      call(
        'memoryEncryptOp',
        () => sevCommand(subject),
        (vm, command) => vm.memoryEncryptOp(command),
      ),
    ],
    [3, subject.withVm((vm, { vcpus }) => prepareSnp(subject, vm, vcpus))],
    [8, subject.withVm((vm, machine) => furnish(subject, vm, machine))],
  ];
}

/** 64 pages of guest memory with page tables at 0 and something to execute in each page from 2 on, so that guests do get somewhere. */
function furnish(subject: FuzzSubject, vm: Vm, machine: Machine): void {
  const v = subject.values;
  const { memory } = subject.process;
  subject.log.call('furnish', vm.type, () => {
    const at = memory.mmap({ length: 64 * PAGE, protection: 3, flags: v.pick([0x21, 0x22]) });
    subject.addresses.push(at);
    memory.write(at, LARGE_MAP);
    for (let page = 2; page < 40; page++)
      memory.write((at + page * PAGE) as Hva, v.pick(GUEST_SNIPPETS).subarray(0, PAGE));
    const withFile = vm.type !== 0 && v.bit() === 1;
    const slot = { slot: v.below(2), guestPhysAddr: 0n, memorySize: 0x40000n, userspaceAddr: BigInt(at) };
    const guestMemfd = withFile ? vm.createGuestMemfd({ size: 0x40000n, flags: 0n }) : 0;
    vm.setUserMemoryRegion2({ ...slot, flags: withFile ? 4 : v.bit(), guestMemfd, guestMemfdOffset: 0n });
    if (machine.vcpus.length < MAX_VCPUS) machine.vcpus.push(vm.createVcpu(v.below(MAX_VCPUS)));
  });
  for (const vcpu of machine.vcpus) boot(subject, vcpu);
}
