import { afterEach, describe, expect, it } from 'vitest';
import { createKernel, type Kernel, type KvmVm, type Personality } from '../../../../src/kernel/kvm/index.ts';

let kernel: Kernel;
afterEach(() => kernel.close());

const SPLIT = 121;
const X2APIC_API = 129;

function vm(personality: Personality, irqchip: 'split' | 'off'): KvmVm {
  kernel = createKernel({ memory: 16 * 1024 * 1024, kernel: personality });
  const made = kernel.newProcess().openKvm().createVm(0);
  if (irqchip === 'split') made.enableCap({ cap: SPLIT, args: [24n] });
  return made;
}
const outcome = (act: () => void): string => {
  try {
    act();
    return 'OK';
  } catch (error) {
    return (error as { code: string }).code;
  }
};

describe('KVM_CAP_X2APIC_API', () => {
  it.each([
    ['7.2', 'split', 15],
    ['7.2', 'off', 11],
    ['6.12', 'split', 3],
    ['6.12', 'off', 3],
  ] as const)('kernel %s, irqchip %s: %i', (personality, irqchip, flags) => {
    expect(vm(personality, irqchip).checkExtension(X2APIC_API)).toBe(flags);
  });

  it('offers all on /dev/kvm', () => {
    vm('7.2', 'off');
    expect(kernel.newProcess().openKvm().checkExtension(X2APIC_API)).toBe(15);
  });

  it.each([
    ['7.2', 'split', 0n, 'OK'],
    ['7.2', 'split', 7n, 'OK'],
    ['7.2', 'split', 11n, 'OK'],
    ['7.2', 'split', 12n, 'EINVAL'],
    ['7.2', 'split', 16n, 'EINVAL'],
    ['7.2', 'off', 4n, 'EINVAL'],
    ['7.2', 'off', 8n, 'OK'],
    ['6.12', 'split', 3n, 'OK'],
    ['6.12', 'split', 4n, 'EINVAL'],
    ['6.12', 'split', 8n, 'EINVAL'],
  ] as const)('kernel %s, irqchip %s, args[0] %i: %s', (personality, irqchip, flags, want) => {
    const made = vm(personality, irqchip);
    expect(outcome(() => made.enableCap({ cap: X2APIC_API, args: [flags] }))).toBe(want);
  });

  it.each([
    [0n, 0x0105_0014],
    [4n, 0x0105_0014],
    [8n, 0x0005_0014],
  ])('args[0] %i: the version register is 0x%x', (flags, version) => {
    const made = vm('7.2', 'split');
    made.enableCap({ cap: X2APIC_API, args: [flags] });
    const vcpu = made.createVcpu(0);
    vcpu.setCpuid2(kernel.newProcess().openKvm().getSupportedCpuid());
    expect(new DataView(vcpu.getLapic().buffer).getUint32(0x30, true)).toBe(version);
  });
});
