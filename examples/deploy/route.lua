-- Every image that Orthanc stores goes to the model, but for what the model itself sent: its results would come for ever.
function OnStoredInstance(instance, tags, metadata, origin)
  if origin['RequestOrigin'] == 'DicomProtocol' and origin['RemoteAet'] == 'MAESCREEN' then
    return
  end
  SendToModality(instance, 'maescreen')
end
