/** The ioctl fuzzer's calls on /dev/kvm. */
import type { Kvm } from '../../../src/kernel/interface.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import type { Action, FuzzSubject, Machine } from './fuzz-subject.ts';
import { CAPABILITIES, MSRS } from './fuzz-values.ts';

const MAX_VMS = 4;

export function kvmCalls(subject: FuzzSubject): Action[] {
  const v = subject.values;
  const kvm = (name: string, argument: unknown, act: (kvm: Kvm) => unknown): void => {
    if (subject.kvms.length < 2) {
      const opened = subject.log.call('openKvm', '', () => subject.process.openKvm());
      if (opened === undefined) return;
      subject.kvms.push(opened);
    }
    const which = v.pick(subject.kvms);
    subject.log.call(name, argument, () => act(which));
  };
  return [
    [1, () => kvm('getApiVersion', '', (which) => which.getApiVersion())],
    [1, () => kvm('getVcpuMmapSize', '', (which) => which.getVcpuMmapSize())],
    [1, () => kvm('getSupportedCpuid', '', (which) => which.getSupportedCpuid())],
    [1, () => kvm('getMsrIndexList', '', (which) => which.getMsrIndexList())],
    [1, () => kvm('getMsrFeatureIndexList', '', (which) => which.getMsrFeatureIndexList())],
    [1, () => kvm('kvm.getMsrs', '', (which) => which.getMsrs(v.some(4, () => v.pick([...MSRS, v.u32()]))))],
    [
      2,
      () => {
        const cap = v.mostly(v.pick(CAPABILITIES), v.u32());
        kvm('checkExtension', cap, (which) => which.checkExtension(cap));
      },
    ],
    [
      1,
      () => {
        const request = {
          group: v.pick([0, 1, v.u32()]),
          attr: v.mostly(v.pick([0n, 1n]), v.u64()),
        };
        kvm('getDeviceAttr', request, (which) => which.getDeviceAttr(request));
      },
    ],
    [
      6,
      () => {
        if (subject.machines.length >= MAX_VMS) {
          subject.machines[v.below(MAX_VMS)] = subject.machines.at(-1)!;
          end(subject, subject.machines.pop()!);
        }
        const type = v.roughArgument(v.mostly(v.pick([0, 1, 1, 4, 4]), v.u32()));
        kvm('createVm', type, (which) => {
          const vm = which.createVm(type) as Vm;
          subject.machines.push({ vm, vcpus: [] });
        });
      },
    ],
    [
      1,
      () =>
        v.oneIn(8) &&
        subject.kvms.length > 0 &&
        subject.log.call('kvm.close', '', () => subject.kvms.shift()!.close()),
    ],
  ];
}

/** Closes a VM and its vCPUs in any order, and leaves some open for who holds them. */
function end(subject: FuzzSubject, { vm, vcpus }: Machine): void {
  const closings = [() => vm.close(), ...vcpus.map((vcpu) => () => vcpu.close())];
  if (subject.values.bit() === 1) closings.reverse();
  for (const close of closings) subject.log.call('close of a VM or vCPU', '', close);
}
