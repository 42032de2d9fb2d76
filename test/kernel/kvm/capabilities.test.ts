/** KVM_CHECK_EXTENSION and KVM_ENABLE_CAP: what each kernel answers on /dev/kvm and on each kind of VM. */
import { describe, expect, it } from 'vitest';
import { failure } from '../process-fixture.ts';
import { BOTH_KERNELS, DEFAULT, SW_PROTECTED, startVm } from './vm-fixture.ts';

/** capability, what /dev/kvm says, a default VM, a software-protected VM. */
const SAME_IN_BOTH: [string, number, number, number, number][] = [
  ['USER_MEMORY', 3, 1, 1, 1],
  ['NR_MEMSLOTS', 10, 32764, 32764, 32764],
  ['SYNC_MMU', 16, 1, 1, 1],
  ['DESTROY_MEMORY_REGION_WORKS', 21, 1, 1, 1],
  ['JOIN_MEMORY_REGIONS_WORKS', 30, 1, 1, 1],
  ['USER_NMI', 22, 1, 1, 1],
  ['SET_GUEST_DEBUG', 23, 1, 1, 1],
  ['VCPU_EVENTS', 41, 1, 1, 1],
  ['INTR_SHADOW', 49, 1, 1, 1],
  ['DEBUGREGS', 50, 1, 1, 1],
  ['X86_ROBUST_SINGLESTEP', 51, 1, 1, 1],
  ['XSAVE', 55, 1, 1, 1],
  ['XCRS', 56, 1, 1, 1],
  ['GET_TSC_KHZ', 61, 1, 1, 1],
  ['GET_MSR_FEATURES', 153, 1, 1, 1],
  ['EXCEPTION_PAYLOAD', 164, 1, 1, 1],
  ['X86_USER_SPACE_MSR', 188, 1, 1, 1],
  ['X86_MSR_FILTER', 189, 1, 1, 1],
  ['SET_GUEST_DEBUG2', 195, 0x1f0003, 0x1f0003, 0x1f0003],
  ['XSAVE2', 208, 4096, 4096, 4096],
  ['X86_TRIPLE_FAULT_EVENT', 218, 1, 1, 1],
  ['READONLY_MEM', 81, 1, 1, 1],
  ['ENABLE_CAP_VM', 98, 1, 1, 1],
  ['CHECK_EXTENSION_VM', 105, 1, 1, 1],
  ['MULTI_ADDRESS_SPACE', 118, 2, 2, 1],
  ['MAX_VCPU_ID', 128, 4096, 4096, 4096],
  ['IMMEDIATE_EXIT', 136, 1, 1, 1],
  ['MANUAL_DIRTY_LOG_PROTECT2', 168, 3, 3, 3],
  ['DIRTY_LOG_RING', 192, 1048576, 1048576, 1048576],
  ['DIRTY_LOG_RING_ACQ_REL', 223, 1048576, 1048576, 1048576],
  ['EXIT_HYPERCALL', 201, 1 << 12, 1 << 12, 1 << 12],
  ['USER_MEMORY2', 231, 1, 1, 1],
  ['MEMORY_FAULT_INFO', 232, 1, 1, 1],
  ['MEMORY_ATTRIBUTES', 233, 8, 0, 8],
  ['VM_TYPES', 235, 0b11, 0b11, 0b11],
  ['PRE_FAULT_MEMORY', 236, 1, 1, 1],
];
/** What a later part of the house has to bring first. */
const NOT_THERE: [string, number][] = [
  ['VM_COPY_ENC_CONTEXT_FROM', 197],
  ['VM_MOVE_ENC_CONTEXT_FROM', 206],
  ['DIRTY_LOG_RING_WITH_BITMAP', 225],
  ['a number that nobody uses', 9999],
];

describe.each(BOTH_KERNELS)('KVM_CHECK_EXTENSION on %s', (kernel) => {
  const answers = (capability: number): number[] => {
    const { kvm, vm } = startVm({ kernel, type: DEFAULT });
    const protectedVm = kvm.createVm(SW_PROTECTED);
    return [kvm, vm, protectedVm].map((scope) => scope.checkExtension(capability));
  };

  it.each(SAME_IN_BOTH)(
    '%s (%i): %i on /dev/kvm, %i on a default VM, %i on a protected one',
    (_, cap, ...want) => {
      expect(answers(cap)).toEqual(want);
    },
  );

  it.each(NOT_THERE)('%s (%i) is not there', (_, cap) => {
    expect(answers(cap)).toEqual([0, 0, 0]);
  });

  it('GUEST_MEMFD (234): in 6.12 a default VM has none', () => {
    expect(answers(234)).toEqual(kernel === '6.12' ? [1, 0, 1] : [1, 1, 1]);
  });

  it('GUEST_MEMFD_FLAGS (244): absent in 6.12; INIT_SHARED only without private memory', () => {
    expect(answers(244)).toEqual(kernel === '6.12' ? [0, 0, 0] : [3, 3, 1]);
  });
});

describe('KVM_ENABLE_CAP', () => {
  it.each([
    ['EXIT_HYPERCALL with MAP_GPA_RANGE', 201, 0, [1n << 12n], 'OK'],
    ['EXIT_HYPERCALL with nothing', 201, 0, [0n], 'OK'],
    ['EXIT_HYPERCALL with a hypercall that cannot exit', 201, 0, [1n << 11n], 'EINVAL'],
    ['EXIT_HYPERCALL with a bit of the high word', 201, 0, [1n << 44n], 'EINVAL'],
    ['USER_SPACE_MSR with all three reasons', 188, 0, [7n], 'OK'],
    ['USER_SPACE_MSR with a fourth reason', 188, 0, [8n], 'EINVAL'],
    ['EXCEPTION_PAYLOAD', 164, 0, [1n], 'OK'],
    ['X86_TRIPLE_FAULT_EVENT', 218, 0, [1n], 'OK'],
    ['X86_TRIPLE_FAULT_EVENT with flags', 218, 1, [1n], 'EINVAL'],
    ['flags', 201, 1, [1n << 12n], 'EINVAL'],
    ['a capability that is always on', 231, 0, [], 'EINVAL'],
    ['a dirty ring beside a bitmap, which x86 has not', 225, 0, [], 'EINVAL'],
  ])('%s: %s', (_, cap, flags, args, want) => {
    const { vm } = startVm();
    expect(failure(() => vm.enableCap({ cap, flags, args }))).toBe(want);
  });

  it('keeps the last set of hypercalls, and a refused one changes nothing', () => {
    const { vm } = startVm();
    expect(vm.capabilities.hypercallExits).toBe(0);
    vm.enableCap({ cap: 201, args: [0x1000n] });
    failure(() => vm.enableCap({ cap: 201, args: [0x3000n] }));
    expect(vm.capabilities.hypercallExits).toBe(0x1000);
    vm.enableCap({ cap: 201, args: [0n] });
    expect(vm.capabilities.hypercallExits).toBe(0);
  });
});

describe('KVM_CREATE_VM', () => {
  it.each([
    [0, 'OK'],
    [1, 'OK'],
    [2, 'EINVAL'],
    [4, 'EINVAL'],
    [5, 'EINVAL'],
    [-1, 'EINVAL'],
    [1 << 31, 'EINVAL'],
    // Its low five bits are those of type 1.
    [33, 'EINVAL'],
    [1 - 32, 'EINVAL'],
  ])('type %i: %s', (type, want) => {
    const { kvm } = startVm();
    expect(failure(() => kvm.createVm(type))).toBe(want);
  });

  it('without a free descriptor: EMFILE, and no frame is kept', () => {
    const { kvm, memory } = startVm({ fileLimit: 5 });
    const before = memory.freeFrames;
    expect(failure(() => kvm.createVm(0))).toBe('EMFILE');
    expect(memory.freeFrames).toBe(before);
  });

  it('/dev/kvm has API version 12 and vCPUs of 3 pages', () => {
    const { kvm } = startVm();
    expect([kvm.getApiVersion(), kvm.getVcpuMmapSize()]).toEqual([12, 0x3000]);
  });
});
