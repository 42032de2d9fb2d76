/** What the fields of KVM_MEMORY_ENCRYPT_OP's structures can hold, and of what an address in them points to. */
import {
  KVM_SEV,
  kvmSevCmd,
  kvmSevInit,
  kvmSevSnpLaunchFinish,
  kvmSevSnpLaunchStart,
  kvmSevSnpLaunchUpdate,
} from '../../../../abi/kvm-sev.ts';
import { bytes, s32, struct } from '../../../../abi/layout.ts';
import type { SevCommand } from '../../../interface.ts';

const idBlock = struct('kvm_sev_snp_launch_finish.id', { block: bytes(96), auth: bytes(4096) });
const NOWHERE = { idBlockUaddr: 0n, idAuthUaddr: 0n };

/** Errors: TypeError, RangeError, with the field's name. */
export function checkSevCommand(command: SevCommand): void {
  const { id, sevFd } = command;
  s32.check(sevFd, 'kvm_sev_cmd.sevFd');
  kvmSevCmd.check({ id, pad0: 0, data: 0n, error: 0, sevFd: 0 });
  switch (command.id) {
    case KVM_SEV.INIT2:
      kvmSevInit.check(command.data && { ...command.data, pad1: 0 });
      break;
    case KVM_SEV.SNP_LAUNCH_START:
      kvmSevSnpLaunchStart.check(command.data);
      break;
    case KVM_SEV.SNP_LAUNCH_UPDATE:
      kvmSevSnpLaunchUpdate.check(command.data && { ...command.data, pad0: 0, pad1: 0 });
      break;
    case KVM_SEV.SNP_LAUNCH_FINISH: {
      const { data } = command;
      const enabled = { idBlockEn: 0, authKeyEn: 0, vcekDisabled: 0 };
      kvmSevSnpLaunchFinish.check(
        data && { ...NOWHERE, ...enabled, hostData: data.hostData, flags: data.flags },
      );
      if (data.id !== undefined) idBlock.check(data.id);
    }
  }
}
